//! Which instruction set this process computes with: looked up once, never assumed.

/// The instruction sets that kernels are compiled for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust.
    Portable,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// NEON.
    Neon,
    /// NEON and the dot product extension.
    NeonDot,
}

/// How far ahead of its use a kernel asks for what it reads in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAhead {
    /// Distance in bytes.
    pub bytes: usize,
    /// What becomes of the caches.
    pub caches: Caches,
}

/// Bytes that one prefetch brings, and that lanes must not share.
pub(crate) const LINE_BYTES: usize = 64;

/// What reading does to the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caches {
    /// What was read stays, as long as there is room.
    Fill,
    /// What was read goes by: it will not be wanted again before all the rest has been.
    Pass,
}

impl Isa {
    /// The best set of this processor.
    pub fn detect() -> Isa {
        Isa::available().last().copied().unwrap_or(Isa::Portable)
    }

    /// All sets of this processor, slowest first.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut sets = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                sets.push(Isa::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                {
                    sets.push(Isa::Avx512);
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if std::arch::is_aarch64_feature_detected!("neon") {
                sets.push(Isa::Neon);
                if std::arch::is_aarch64_feature_detected!("dotprod") {
                    sets.push(Isa::NeonDot);
                }
            }
        }
        sets
    }

    /// How a product of one column asks for its weights ahead of its reads; none where the processor's own prefetching does
    /// better or nobody has measured. Figures in docs/LOG.md: Zen 5 gains 8 to 66 %, and 3 to 11 % of a whole token by leaving
    /// its caches alone; Emerald Rapids gains 12 to 80 % and loses by that; Zen 4 loses by either.
    pub fn read_ahead() -> Option<ReadAhead> {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::__cpuid;
            const AMD: (u32, u32, u32) = (0x6874_7541, 0x6974_6e65, 0x444d_4163);
            const INTEL: (u32, u32, u32) = (0x756e_6547, 0x4965_6e69, 0x6c65_746e);
            let vendor = __cpuid(0);
            let signature = __cpuid(1).eax;
            // Base plus extended, as both vendors count the cores in question.
            let family = ((signature >> 8) & 0xf) + ((signature >> 20) & 0xff);
            let model = (signature >> 4) & 0xf | (signature >> 12) & 0xf0;
            match (vendor.ebx, vendor.edx, vendor.ecx) {
                AMD if family >= 0x1a => Some(ReadAhead { bytes: 4096, caches: Caches::Pass }),
                INTEL if (family, model) == (6, 0xcf) => Some(ReadAhead { bytes: 4096, caches: Caches::Fill }),
                _ => None,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// The word used in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2+fma",
            Isa::Avx512 => "avx512+vnni",
            Isa::Neon => "neon",
            Isa::NeonDot => "neon+dotprod",
        }
    }
}

/// Runs `$body` for the instruction set `$isa` with `$S` standing for its `Lanes`, inside a function that enables the set.
/// The body must be a call of an `#[inline(always)]` generic kernel.
macro_rules! dispatch {
    ($isa:expr, $kernel:ident ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: called only where the set was detected.
            unsafe { $kernel::<$crate::simd::Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: called only where the set was detected.
            unsafe { $kernel::<$crate::simd::Avx2>($($arg),*) }
        }
        #[cfg(target_arch = "aarch64")]
        #[target_feature(enable = "neon")]
        unsafe fn neon($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: called only where the set was detected.
            unsafe { $kernel::<$crate::simd::Neon<$crate::simd::Widening>>($($arg),*) }
        }
        // SAFETY: `Isa` values beyond Portable come from `Isa::available`, which detected them.
        unsafe {
            match $isa {
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx512 => avx512($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx2 => avx2($($arg),*),
                // Only products of bytes know the difference.
                #[cfg(target_arch = "aarch64")]
                $crate::isa::Isa::Neon | $crate::isa::Isa::NeonDot => neon($($arg),*),
                _ => $kernel::<$crate::simd::Portable>($($arg),*),
            }
        }
    }};
}

pub(crate) use dispatch;
