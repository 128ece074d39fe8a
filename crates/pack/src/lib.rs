//! Packing room of Reverie: inspect and quantise; files in, files out, no running model.
