//! Delta.

use reverie_tensor::*;
use crate::Cpu;

pub(crate) fn run(c:&Cpu,m:&Tensor,g:(&Tensor,&Tensor),s:&mut [StateSegment<'_>],spec:&DeltaSpec)->Result<Tensor>{reference::delta::run(c,m,g,s,spec)}
