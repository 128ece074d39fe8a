//! Panels.

use reverie_tensor::*;
use crate::Cpu;

pub(crate) fn packed_bytes(n:usize,k:usize,f:&Form)->usize{n*f.row_bytes(k)}
pub(crate) fn pack(_c:&Cpu,_s:&dyn WeightSource,_b:Option<&[f32]>)->Result<Weight>{Err(Error::Unsupported{backend:"cpu",what:"pack yet".into()})}
pub(crate) fn unpack(_w:&Weight)->Result<Box<dyn WeightSource+'_>>{Err(Error::Unsupported{backend:"cpu",what:"unpack yet".into()})}
