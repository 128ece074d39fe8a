//! Export files and the objects in them: any bytes are read or refused, within the memory that the bytes themselves justify. Each input
//! is read twice: as it is, and as the recipe of a file whose hashes and seals are right, so that what lies behind them is reached too.
#![no_main]

use reverie_memory::{ExportReader, Hash};

/// A file out of parts that 0xff ends: the header's JSON, then contents, first the manifests (`m` before them). `#3` in a part stands for the
/// hash of the fourth one.
fn assembled(bytes: &[u8]) -> Vec<u8> {
    let mut parts: Vec<Vec<u8>> = bytes.split(|&b| b == 0xff).take(10).map(<[u8]>::to_vec).collect();
    let mut names: Vec<String> = vec![String::new(); parts.len()];
    let mut entries = Vec::new();
    for i in (0..parts.len()).rev() {
        let text = std::mem::take(&mut parts[i]);
        let mut content = Vec::new();
        let mut rest = text.iter();
        while let Some(&b) = rest.next() {
            let named = rest.as_slice().first().filter(|d| b == b'#' && d.is_ascii_digit());
            match named.and_then(|d| names.get(usize::from(d - b'0'))) {
                Some(name) => {
                    content.extend_from_slice(name.as_bytes());
                    rest.next();
                }
                None => content.push(b),
            }
        }
        if i == 0 {
            parts[0] = content;
            break;
        }
        let manifest = content.first() == Some(&b'm');
        let content = content.get(usize::from(manifest)..).unwrap_or_default();
        let (codec, body) = if manifest { (2, deflated(content)) } else { (0, content.to_vec()) };
        let mut object = vec![b'R', b'V', b'O', b'B', 2, codec, u8::from(manifest), 0];
        object.extend_from_slice(&(content.len() as u64).to_le_bytes());
        let seal = if manifest { Hash::of(&[&object[..], &body].concat()) } else { Hash::of(&object) };
        object.extend_from_slice(&seal.as_bytes()[..8]);
        object.resize(64, 0);
        object.extend_from_slice(&body);
        let name = Hash::of(content);
        names[i] = name.to_string();
        entries.push([name.as_bytes().as_slice(), &(object.len() as u64).to_le_bytes(), &object].concat());
    }
    entries.reverse();
    let header = &parts[0];
    let mut file = [b"RVSTATE1".as_slice(), &(header.len() as u32).to_le_bytes(), header].concat();
    file.extend(entries.concat());
    file.extend([0; 32]);
    file
}

/// A zlib stream of stored blocks.
fn deflated(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x78, 1];
    for block in content.chunks(0xffff) {
        let length = block.len() as u16;
        out.push(0);
        out.extend(length.to_le_bytes().into_iter().chain((!length).to_le_bytes()));
        out.extend_from_slice(block);
    }
    out.extend([1, 0, 0, 0xff, 0xff]);
    let sums =
        content.iter().fold((1u32, 0u32), |(a, b), &x| ((a + u32::from(x)) % 65521, (b + a + u32::from(x)) % 65521));
    out.extend((sums.1 << 16 | sums.0).to_be_bytes());
    out
}

fn read(bytes: &[u8]) {
    // The hash at the end is checked before; here it is as if it were right.
    let Ok(mut reader) = ExportReader::new("fuzz", bytes, bytes.len() as u64) else { return };
    let mut entries = 0;
    while let Ok(Some(entry)) = reader.entry() {
        entries += 1;
        assert!(entry.file.len() <= bytes.len() && entries <= reader.header.objects);
    }
    // Never complete before the last entry: a manifest names what it needs, and each is there once.
    assert!(reader.complete().is_err() || entries == reader.header.objects);
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    read(&assembled(bytes));
});
