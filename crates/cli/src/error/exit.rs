//! The exit statuses of the program. What leads to which is in [`super`].

use service::shutdown::Signal;

/// The exit status of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done,
    /// The run failed.
    Failed,
    /// Asked for something that cannot be.
    Usage,
    /// A coordinator elsewhere does not answer.
    Unavailable,
    /// An input is not there or not what it should be.
    Input,
    /// The output is there already or cannot be created.
    Output,
    /// Reading or writing failed.
    Io,
    /// Paused; the same command goes on.
    Paused,
    /// Ctrl-C.
    Interrupted,
    /// SIGTERM.
    Terminated,
}

impl Exit {
    /// Every status, as the help lists them.
    const ALL: [Self; 10] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::Input,
        Self::Unavailable,
        Self::Output,
        Self::Io,
        Self::Paused,
        Self::Interrupted,
        Self::Terminated,
    ];

    /// Returns the number that the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 64,
            Self::Input => 66,
            Self::Unavailable => 69,
            Self::Output => 73,
            Self::Io => 74,
            Self::Paused => 75,
            Self::Interrupted => Signal::Interrupt.exit_code(),
            Self::Terminated => Signal::Terminate.exit_code(),
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed; the message says why",
            Self::Usage => "a flag, a target or a kind of model that cannot be",
            Self::Input => "model or data missing, unreadable, damaged or too small",
            Self::Unavailable => "no coordinator answers; try again",
            Self::Output => "the output exists already or cannot be created",
            Self::Io => "reading or writing failed, for instance because the disk is full; the same command goes on",
            Self::Paused => "paused; the same command goes on",
            Self::Interrupted => "stopped by Ctrl-C; the same command goes on",
            Self::Terminated => "stopped by SIGTERM; the same command goes on",
        }
    }
}

/// Returns the table of exit codes for the help.
pub(crate) fn exit_codes() -> String {
    let lines = Exit::ALL.map(|exit| format!("  {:>3}  {}", exit.code(), exit.meaning()));
    format!("Exit codes:\n{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_is_in_the_help_once() {
        let help = exit_codes();
        for exit in Exit::ALL {
            let line = format!("  {:>3}  ", exit.code());
            assert_eq!(help.matches(&line).count(), 1, "{exit:?}");
        }
    }
}
