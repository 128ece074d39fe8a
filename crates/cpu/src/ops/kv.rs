//! KV.

use reverie_tensor::*;
use crate::Cpu;

pub(crate) fn write(c:&Cpu,k:&Tensor,v:&Tensor,t:&mut [KvTarget<'_>],spec:&KvSpec)->Result<()>{reference::attend::write(c,k,v,t,spec)}
