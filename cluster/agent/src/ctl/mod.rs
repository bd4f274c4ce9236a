//! `leaderpoolctl`, the operator's tool.
