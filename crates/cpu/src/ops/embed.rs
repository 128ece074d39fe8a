//! Embed.

use reverie_tensor::*;
use crate::Cpu;

pub(crate) fn run(c:&Cpu,t:&Weight,ids:&[u32],s:f32)->Result<Tensor>{reference::embed::run(c,t,ids,s)}
