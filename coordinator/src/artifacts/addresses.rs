//! Whether what a run's data means by `artifact:…` is there. Paths are looked at by the workers.

use super::refusal;
use proto::InvalidMessage;
use proto::convert::ArtifactAddress;
use service::status::spec_invalid;
use service::{Store, keys};
use tonic::Status;
use types::{RunSpec, Violation};

/// Refuses a specification that names artifacts which cannot be or are not there; all faults at once.
pub(crate) async fn check_data(store: &Store, spec: &RunSpec) -> Result<(), Status> {
    let mut violations = Vec::new();
    for (field, paths) in [("data", &spec.data), ("eval_data", &spec.eval_data)] {
        for (n, path) in paths.iter().enumerate() {
            let field = format!("{field}[{n}]");
            match ArtifactAddress::parse(&field, path) {
                Ok(None) => {}
                Err(invalid) => violations.extend(invalid.violations),
                Ok(Some(address)) => {
                    let is_there = store.exists(&keys::artifact(&address.blake3)).await;
                    if !is_there.map_err(|error| refusal(&error))? {
                        violations
                            .push(Violation { field, problem: format!("{address} is not here; upload it first") });
                    }
                }
            }
        }
    }
    if violations.is_empty() { Ok(()) } else { Err(spec_invalid(&InvalidMessage { message: "RunSpec", violations })) }
}
