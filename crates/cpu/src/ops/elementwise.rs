//! Elementwise.

use reverie_tensor::*;
use crate::Cpu;
use reverie_tensor::backend::Map;
pub(crate) fn glu(c:&Cpu,g:&Tensor,u:&Tensor,a:Act)->Result<Tensor>{reference::elementwise::glu(c,g,u,a)}
pub(crate) fn add(c:&Cpu,a:Tensor,b:&Tensor)->Result<Tensor>{reference::elementwise::add(c,&a,b)}
pub(crate) fn map(c:&Cpu,x:Tensor,m:Map)->Result<Tensor>{reference::elementwise::map(c,&x,m)}
pub(crate) fn rows(c:&Cpu,x:&Tensor,r:&[usize])->Result<Tensor>{reference::elementwise::rows(c,x,r)}
