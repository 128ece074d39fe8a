//! Buffers: lent again, counted once, given back, and laid over files.

use super::*;

#[test]
fn scratch_is_lent_again_and_counted_once() {
    let memory = Memory::host();
    let first = memory.take(1000, Class::Scratch).unwrap();
    let held = memory.usage().total;
    drop(first);
    let again = memory.take(990, Class::Scratch).unwrap();
    assert_eq!(memory.usage().total, held);
    assert_eq!(again.len(), 990);
}

#[test]
fn budget_refuses_and_names_the_class() {
    let memory = Memory::host();
    memory.set_limit(Some(4096));
    let _w = memory.take(4096, Class::Weights).unwrap();
    let err = memory.take(1, Class::State).err().unwrap().to_string();
    assert!(err.contains("state") && err.contains("4096"), "{err}");
}

#[test]
fn a_phantom_counts_what_the_host_counts() {
    let (host, phantom) = (Memory::host(), Memory::phantom());
    for memory in [&host, &phantom] {
        let a = memory.take(70_000, Class::Scratch).unwrap();
        let b = memory.take(5, Class::State).unwrap();
        drop(a);
        drop(b);
        drop(memory.take(69_000, Class::Scratch).unwrap());
    }
    assert_eq!(host.usage(), phantom.usage());
    assert!(phantom.take(8, Class::State).unwrap().bytes().is_none());
}

#[test]
fn freed_state_is_used_again_or_given_back() {
    let memory = Memory::host();
    let piece = 256 << 10;
    let fill = |n: usize| -> Vec<Buffer> {
        let of = |i: usize| {
            let mut b = memory.take(piece, Class::State).unwrap();
            b.bytes_mut().unwrap().fill((i % 250) as u8 + 1);
            b
        };
        (0..n).map(of).collect()
    };
    let one = fill(1).pop().unwrap();
    let at = one.bytes().unwrap().as_ptr();
    drop(one);
    let again = memory.take(piece, Class::State).unwrap();
    assert!(std::ptr::eq(again.bytes().unwrap().as_ptr(), at) && !again.is_zero());
    // Three slabs, of which every second piece is freed: what comes back is either dirty or truly zero.
    let mut many = fill(400);
    let mut i = 0;
    many.retain(|_| {
        i += 1;
        i % 2 == 0
    });
    for _ in 0..200 {
        let b = memory.take(piece, Class::State).unwrap();
        assert!(!b.is_zero() || b.bytes().unwrap().iter().all(|&x| x == 0));
        many.push(b);
    }
    drop(many);
    drop(again);
    let ledger = memory.lock();
    assert!(ledger.usage.total == 0 && ledger.rest_bytes as u64 <= STATE_REST_BYTES);
    assert!(ledger.rest.values().flatten().count() * piece <= STATE_SLAB_BYTES, "idle slabs are unmapped");
}

#[test]
fn holders_are_asked_when_the_budget_is_short() {
    struct Held(Mutex<Vec<Buffer>>);
    impl Holder for Held {
        fn give_back(&self, bytes: u64) {
            let mut freed = 0;
            while freed < bytes {
                let Some(buffer) = self.0.lock().unwrap().pop() else { return };
                freed += buffer.len() as u64;
            }
        }
    }
    let memory = Memory::host();
    memory.set_limit(Some(10 << 16));
    let held = Arc::new(Held(Mutex::default()));
    let holder: Arc<dyn Holder> = held.clone();
    memory.ask_when_short(&holder);
    for _ in 0..8 {
        held.0.lock().unwrap().push(memory.take(1 << 16, Class::Experts).unwrap());
    }
    let state = memory.take(5 << 16, Class::State).unwrap();
    assert_eq!(held.0.lock().unwrap().len(), 5, "no more than was needed");
    assert_eq!(memory.usage().of(Class::Experts), 5 << 16);
    assert!(memory.take(6 << 16, Class::Scratch).is_err(), "all that they hold is too little");
    drop((state, holder, held));
    assert!(memory.take(10 << 16, Class::State).is_ok(), "who is gone is not asked");
}

#[test]
fn state_bytes_return_to_the_budget() {
    let memory = Memory::host();
    drop(memory.take(123, Class::State).unwrap());
    assert_eq!(memory.usage().total, 0);
    assert_eq!(memory.usage().peak, 128);
}

#[test]
fn a_buffer_over_a_file_is_its_bytes_and_what_is_written_stays_in_memory() {
    let path = std::env::temp_dir().join(format!("reverie-over-file-{}", std::process::id()));
    let content: Vec<u8> = (0..64 + 3 * MAPPED_LEAST_BYTES).map(|i| (i % 251) as u8).collect();
    std::fs::write(&path, &content).unwrap();
    let file = File::open(&path).unwrap();
    let memory = Memory::host();
    let lens = [MAPPED_LEAST_BYTES, 2 * MAPPED_LEAST_BYTES];
    let mut over = memory.over_file(&file, 64, &lens).unwrap().expect("mapped");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(memory.usage().of(Class::State), 3 * MAPPED_LEAST_BYTES as u64);
    let mut last = over.pop().unwrap();
    assert!(over[0].bytes() == Some(&content[64..64 + lens[0]]) && last.bytes() == Some(&content[64 + lens[0]..]));
    last.bytes_mut().unwrap()[5] = 255;
    assert_eq!(last.cast::<u8>().unwrap()[4..7], [content[68 + lens[0]], 255, content[70 + lens[0]]]);
    let again = memory.over_file(&file, 64, &lens).unwrap().expect("mapped");
    assert_eq!(again[1].bytes(), Some(&content[64 + lens[0]..]), "the file is as it was");
    drop((over, last, again));
    assert_eq!((memory.usage().total, Arc::strong_count(&memory.lock().mapped)), (0, 1));
    // A buffer that comes after is zero, and no piece of a file.
    let fresh = memory.take(lens[0], Class::State).unwrap();
    assert!(fresh.is_zero() && fresh.bytes().unwrap().iter().all(|&b| b == 0));
    // Not aligned, longer than the file, small, beyond the budget, or counting only.
    assert!(memory.over_file(&file, 24, &lens).unwrap().is_none());
    assert!(memory.over_file(&file, 128, &lens).unwrap().is_none());
    assert!(memory.over_file(&file, 64, &[4096]).unwrap().is_none());
    assert!(Memory::phantom().over_file(&file, 64, &lens).unwrap().is_none());
    memory.set_limit(Some(lens[1] as u64));
    assert!(memory.over_file(&file, 64, &lens).is_err());
}
