//! Kitchen of Reverie: plans, architectures, mixers, feed-forwards, caches and the one forward.
