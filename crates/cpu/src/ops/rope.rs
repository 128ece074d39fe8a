//! Rope.

use reverie_tensor::*;
use crate::Cpu;

pub(crate) fn run(c:&Cpu,x:Tensor,p:&[u32],r:&Rope)->Result<Tensor>{reference::rope::run(c,x,p,r)}
