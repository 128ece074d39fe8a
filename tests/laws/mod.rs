//! The laws, each over every fixture there is.

mod budget;
mod composed;
mod defaults;
mod draft;
mod experts;
mod lazy_experts;
mod mutants;
mod oracle;
mod pack;
mod pocket;
mod prefix;
mod refusals;
mod same_bits;
mod sleep;
mod window;

pub use same_bits::Subject;

/// Every law that a checkpoint without a reference can be held to.
pub fn every_law(subject: &Subject) {
    same_bits::every_law(subject);
    budget::forecast_holds(&subject.path, &subject.registries);
}
