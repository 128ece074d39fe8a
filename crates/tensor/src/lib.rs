//! Ground floor: dtypes, buffers, tensor handles, the `Backend` trait with a scalar reference behind every
//! operation, and the weight formats. It refuses to know models, files and threads.

pub mod attention;
pub mod backend;
pub mod buffer;
pub mod dry;
pub mod dtype;
pub mod error;
pub mod experts;
pub mod form;
pub mod formula;
pub mod probe;
pub mod quant;
pub mod recurrence;
pub mod reference;
pub mod tensor;

pub use backend::{
    Act, AttendSpec, Backend, Choice, ChooseSpec, ConvSpec, Input, Keep, KvSegment, KvSpec, KvTarget, Latent, Norm,
    NormKind, Numerics, Operand, Reach, RgLruSpec, Rope, RopeLayout, ScanInput, ScanSpec, StateSegment, Weight,
};
pub use buffer::{Class, Holder, Memory, Usage};
pub use dtype::DType;
pub use error::{Error, Result};
pub use experts::{Event, Group, GroupRank, RouteGroups, RouteSpec, Routes, Score, Term};
pub use form::{Form, Grouped, Levels, Scales, WeightSource};
pub use formula::Formula;
pub use recurrence::{Decay, HeadOrder, Heads, Read, Recurrence, RecurrenceSpec, Rule};
pub use tensor::{Shape, Tensor};
