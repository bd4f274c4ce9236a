//! What to do now: a pure function.
