//! The plain feed-forward with squared ReLU (arXiv 2109.08668).

use reverie_tensor::Act;

use super::{FfnEntry, glu};

/// The row.
pub const ENTRY: FfnEntry = FfnEntry {
    name: "relu2",
    about: "down(relu(up x)^2)",
    spec: |config, _| {
        let inner = glu::width(config, "intermediate_size")?;
        Ok(Box::new(glu::Spec::new(ENTRY.name, inner, Act::Relu2, glu::Shape::Plain)))
    },
};
