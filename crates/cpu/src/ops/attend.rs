//! Attention.

use reverie_tensor::*;
use crate::Cpu;

pub(crate) fn workspace(_c:&Cpu,_rows:usize,_keys:usize,_s:&AttendSpec)->usize{0}
pub(crate) fn run(c:&Cpu,q:&Tensor,s:&[KvSegment<'_>],spec:&AttendSpec)->Result<Tensor>{reference::attend::run(c,q,s,spec)}
