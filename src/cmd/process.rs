//! What this process holds, as the system tells it; nothing where the system does not.

/// Begins a new peak, where the system lets a process do so; elsewhere the old one stays and is too high, never too low.
pub fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Peak resident bytes of this process, where the system says.
pub fn peak_resident() -> Option<u64> {
    status("VmHWM:")
}

/// Resident bytes of this process now, where the system says.
pub fn resident() -> Option<u64> {
    status("VmRSS:")
}

fn status(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|l| l.starts_with(field))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
