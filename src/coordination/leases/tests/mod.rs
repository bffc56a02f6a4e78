//! Tests of leases: each rule by an example, and all of them against a model.

mod model;
mod rules;
