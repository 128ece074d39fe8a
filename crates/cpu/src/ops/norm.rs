//! Norm.

use reverie_tensor::*;
use crate::Cpu;

pub(crate) fn run(c:&Cpu,x:&Tensor,n:&Norm)->Result<Tensor>{reference::norm::run(c,x,n)}
pub(crate) fn run_gated(c:&Cpu,x:&Tensor,z:&Tensor,n:&Norm)->Result<Tensor>{reference::norm::run_gated(c,x,z,n)}
