//! Conv.

use reverie_tensor::*;
use crate::Cpu;

pub(crate) fn run(c:&Cpu,x:&Tensor,s:&mut [StateSegment<'_>],spec:&ConvSpec)->Result<Tensor>{reference::conv::run(c,x,s,spec)}
