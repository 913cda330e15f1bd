//! Help teaches, and mistakes on the command line are told apart from all others.

use crate::place::Place;

#[test]
fn help_shows_examples_defaults_and_exit_codes() {
    let place = Place::with("llama-gqa");
    let help = place.run(&["--help"]).done();
    let commands = ["prune", "eval", "generate", "inspect", "report", "compare"];
    for wanted in commands.into_iter().chain(["Exit codes:", "130  stopped by Ctrl-C", "LLM_SURGEON_LOG"]) {
        assert!(help.contains(wanted), "{wanted:?} is not in\n{help}");
    }
    let help = place.run(&["prune", "--help"]).done();
    let flags = "data text-column eval-data target-size target-params target-bytes structure shape scoring update curvature \
                 heads shots schedule shot-data decay correct-rank correct-steps correct-rate samples seq-len eval-samples damping damping-scale max-damped-layers fisher fisher-samples targets max-correlate seed device threads dtype \
                 boundary-dtype memory multiple-of out state quiet json";
    for flag in flags.split_whitespace() {
        assert!(help.contains(&format!("--{flag}")), "--{flag} is not in\n{help}");
    }
    for wanted in
        ["Examples:", "[default: 128]", "[default: 1GiB]", "[default: OUT.state]", "row-column:", "Exit codes:"]
    {
        assert!(help.contains(wanted), "{wanted:?} is not in\n{help}");
    }
    for command in ["eval", "generate", "inspect"] {
        let help = place.run(&[command, "--help"]).done();
        assert!(help.contains("Examples:") && help.contains("--json"), "{help}");
    }
    let help = place.run(&["serve", "worker", "--help"]).done();
    for wanted in ["--surgeon-listen", "WORKER_SPILL", "127.0.0.1:7101", "Exit codes:"] {
        assert!(help.contains(wanted), "{wanted:?} is not in\n{help}");
    }
    assert!(place.run(&["report", "--help"]).done().contains("Examples:"));
    assert!(place.run(&["compare", "--help"]).done().contains("--html"));
    assert!(place.run(&["--version"]).done().starts_with("llm-surgeon "));
}

#[test]
fn a_wrong_command_line_exits_with_64() {
    let place = Place::with("llama-gqa");
    place.run(&[]).refused(64, &["Usage: llm-surgeon"]);
    place.run(&["trim"]).refused(64, &["unrecognized subcommand 'trim'"]);
    place.run(&["prune", "model"]).refused(64, &["--data <PATH>", "--out <DIR>"]);
    place.prune(&["--target-size", "0.8", "--shotz", "3"]).refused(64, &["'--shotz'", "'--shots'"]);
    place.prune(&["--target-size", "much"]).refused(64, &["'much'", "--target-size"]);
    place.prune(&["--target-bytes", "12 apples"]).refused(64, &["'12 apples' is not a number of bytes", "250MiB"]);
    place.prune(&["--target-size", "0.8", "--shape", "round"]).refused(64, &["'round'", "uniform", "per-layer"]);
    place.prune(&["--target-size", "0.8", "--damping", "x"]).refused(64, &["'x' is no number", "0.01,0.1"]);
    place.prune(&["--target-size", "0.8", "--device", "gpu"]).refused(64, &["'gpu' is no device", "cuda:N"]);
    place.prune(&["--target-size", "0.8", "--target-params", "1M"]).refused(64, &["cannot be used with"]);
    place.prune(&[]).refused(64, &["no target", "--target-size 0.8"]);
    place.untouched();
}
