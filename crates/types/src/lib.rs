//! Domain types that every other crate shares: names, shapes, the run specification and what stages hand to each other.
//!
//! Everything here is plain data (std, serde, thiserror). A value that exists is valid: constructors check, so that no
//! later stage has to. This crate does not know tensors, the wire, clocks or files.

mod checkpoint;
mod description;
mod ids;
mod path;
mod place;
mod report;
mod run_spec;
mod size;
mod structure;

pub use checkpoint::{Checkpoint, LayerState, ObjectRef};
pub use description::{BlockDescription, DataDescription, LayerDescription, ModelDescription, UnitGroup};
pub use ids::{Generation, InvalidId, LayerId, RunId, WorkerId};
pub use path::{CostHistogram, DampingStep, ElementCut, FactorDamping, LayerCut, PathStep, Precision, RemovalPath};
pub use place::{ModelPlace, RemoteFiles, RemoteObjects};
pub use report::{CorrectionReport, Evaluation, KeptUnits, LayerReport, RunReport, ShapeChoice, ShotReport};
pub use run_spec::{InvalidRunSpec, RunSpec, Violation};
pub use size::{ParseTargetError, Sizes, Target, format_bytes, parse_bytes, parse_count};
pub use structure::{
    AttentionUnit, Curvature, DampingScale, Dtype, Fisher, Format, GgufType, InvalidPattern, Pattern, Schedule,
    Scoring, Shape, ShotData, Structure, Unit, UnitKind, UnknownName, Update,
};
