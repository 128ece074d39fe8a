//! Linear.

use reverie_tensor::*;
use crate::Cpu;

pub(crate) fn workspace(_c:&Cpu,_rows:usize,_w:&[&Weight])->usize{0}
pub(crate) fn run(c:&Cpu,i:Input<'_>,w:&[&Weight])->Result<Vec<Tensor>>{reference::linear::run(c,i,w)}
pub(crate) fn run_add(c:&Cpu,i:Input<'_>,w:&Weight,r:Tensor)->Result<Tensor>{let y=run(c,i,&[w])?.remove(0);c.add(r,&y)}
