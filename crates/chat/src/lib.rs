//! Waiter of Reverie: messages to text to tokens to session to pieces; the loop that CLI and server share.
