//! Weight formats: how the bytes of a file become one of the compute forms.
