//! How much memory this process has used, and how much room a file system has.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What meters have seen: the system keeps one peak, which each new meter has forgotten.
#[derive(Debug)]
struct Seen {
    next: u64,
    /// The largest so far of every meter that runs.
    running: BTreeMap<u64, u64>,
    /// Of the whole process.
    highest: u64,
}

static SEEN: Mutex<Seen> = Mutex::new(Seen { next: 0, running: BTreeMap::new(), highest: 0 });

impl Seen {
    fn look(&mut self) {
        let now = high_water();
        self.highest = self.highest.max(now);
        self.running.values_mut().for_each(|peak| *peak = now.max(*peak));
    }
}

fn seen() -> MutexGuard<'static, Seen> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Measures the largest resident memory of the process while it lives, several at a time. Where the system forgets no peak
/// it measures that of the process so far.
#[derive(Debug)]
pub struct PeakMeter(u64);

impl PeakMeter {
    /// Begins to measure.
    pub fn start() -> Self {
        let mut seen = seen();
        seen.look();
        // Linux: 5 makes the peak what there is now. Without the right to it the peak stays.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        let id = seen.next;
        seen.next += 1;
        seen.running.insert(id, 0);
        Self(id)
    }

    /// Returns the largest resident memory since the start.
    pub fn bytes(&self) -> u64 {
        let mut seen = seen();
        seen.look();
        seen.running.get(&self.0).copied().unwrap_or(0)
    }
}

impl Drop for PeakMeter {
    fn drop(&mut self) {
        seen().running.remove(&self.0);
    }
}

/// Returns the largest resident memory of this process so far; 0 where the system does not say.
pub fn peak_bytes() -> u64 {
    let mut seen = seen();
    seen.look();
    seen.highest
}

fn high_water() -> u64 {
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
    fn each_meter_sees_the_peak_of_its_own_time() {
        let whole = PeakMeter::start();
        let large = vec![1_u8; 192 << 20];
        assert!(large.iter().step_by(4096).map(|b| u64::from(*b)).sum::<u64>() > 0);
        drop(large);
        let after = PeakMeter::start();
        let (of_all, of_the_rest) = (whole.bytes(), after.bytes());
        assert!(of_all > 192 << 20 && peak_bytes() >= of_all, "{of_all}");
        // Where the system forgets no peak both are the same.
        assert!(of_the_rest <= of_all, "{of_the_rest}");
    }

    #[test]
    fn a_file_system_has_no_more_room_than_it_is_large() {
        let room = room(Path::new("/")).unwrap();
        assert!(room.free <= room.size && room.size > 0);
    }
}
