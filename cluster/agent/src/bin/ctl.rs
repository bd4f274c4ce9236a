//! `leaderpoolctl`: the operator's tool.

fn main() {}
