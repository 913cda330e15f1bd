//! The exit statuses of the services, the same for all of them.

/// How a service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Stopped because it was asked to.
    Done,
    /// A flag, a setting or a combination of them that cannot be.
    Usage,
    /// The coordinator was out of reach for too long.
    Unavailable,
    /// A panic, or a state that should not exist.
    Internal,
    /// The system refused: an address in use, no threads, no device.
    System,
    /// The store cannot be read or written.
    Store,
    /// Did not stop in time, or a device is in a state that only a new process can leave.
    Overdue,
    /// Refused by the coordinator, for another version or for missing rights.
    Refused,
}

impl Exit {
    const ALL: [Self; 8] = [
        Self::Done,
        Self::Usage,
        Self::Unavailable,
        Self::Internal,
        Self::System,
        Self::Store,
        Self::Overdue,
        Self::Refused,
    ];

    /// Returns the number that the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::System => 71,
            Self::Store => 74,
            Self::Overdue => 75,
            Self::Refused => 77,
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Done => "stopped because it was asked to",
            Self::Usage => "a flag or setting that cannot be",
            Self::Unavailable => "the coordinator is out of reach; start again",
            Self::Internal => "a bug: the log has the causes",
            Self::System => "the system refused: address in use, no device, no threads",
            Self::Store => "the store cannot be read or written",
            Self::Overdue => "did not stop in time, or the device needs a new process; start again",
            Self::Refused => "refused by the coordinator: another version, or rights are missing",
        }
    }
}

/// Why a service ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit status.
    pub exit: Exit,
    /// What, where, and what to do.
    pub message: String,
}

impl Failure {
    /// Joins an exit status and its reason.
    pub fn new(exit: Exit, message: String) -> Self {
        Self { exit, message }
    }

    /// Returns the one fault, or all of them as one failure of settings.
    pub fn of_all(mut faults: Vec<Self>) -> Self {
        if faults.len() > 1 {
            let messages: Vec<String> = faults.into_iter().map(|fault| fault.message).collect();
            return Self::new(Exit::Usage, messages.join("\nerror: "));
        }
        faults.pop().unwrap_or_else(|| unreachable!("somebody found a fault"))
    }
}

/// Returns the table of exit codes for the help.
pub(super) fn table() -> String {
    let lines = Exit::ALL.map(|exit| format!("  {:>3}  {}", exit.code(), exit.meaning()));
    format!("Exit codes:\n{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_is_in_the_help_once() {
        for exit in Exit::ALL {
            assert_eq!(table().matches(&format!("  {:>3}  ", exit.code())).count(), 1, "{exit:?}");
        }
    }
}
