//! Export files and the objects in them: any bytes are read or refused, within the memory that the bytes themselves justify.
#![no_main]

use reverie_memory::ExportReader;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The hash at the end is checked before; here it is as if it were right.
    let Ok(mut reader) = ExportReader::new("fuzz", bytes, bytes.len() as u64) else { return };
    while let Ok(Some(_)) = reader.entry() {}
});
