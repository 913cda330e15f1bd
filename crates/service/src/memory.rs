//! How much memory this process has used, and how much room a file system has.

use std::path::Path;

/// Returns the largest resident memory of this process so far; 0 where the system does not say.
pub fn peak_bytes() -> u64 {
    std::fs::read_to_string("/proc/self/status").ok().and_then(|status| peak_in(&status)).unwrap_or(0)
}

fn peak_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// A file system's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// That we could still write.
    pub free: u64,
    /// In all.
    pub size: u64,
}

/// Returns the room in the file system of `folder`, if it can be told.
pub fn room(folder: &Path) -> Option<Room> {
    let found = rustix::fs::statvfs(folder).ok()?;
    Some(Room { free: found.f_bavail * found.f_frsize, size: found.f_blocks * found.f_frsize })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_bytes() {
        assert_eq!(peak_in("Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1 kB\n"), Some(2048 * 1024));
        assert_eq!(peak_in("Name:\tx\n"), None);
        assert!(peak_bytes() > 1 << 20);
    }

    #[test]
    fn a_file_system_has_no_more_room_than_it_is_large() {
        let room = room(Path::new("/")).unwrap();
        assert!(room.free <= room.size && room.size > 0);
    }
}
