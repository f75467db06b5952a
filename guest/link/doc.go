// Package link is the line between the monitor and the agent in the guest:
// a frame protocol for one command's life (its job, its standard streams, its
// end) and the transport under it, both ends of each.
//
// The transport is a window of memory shared with the guest that holds two
// byte rings, with a doorbell in each direction; where a guest kernel cannot
// map the window, the machine's second UART carries the same bytes. Anything
// else that is a reliable byte stream may serve as a Conn.
//
// The host end (HostPort, Host) takes the guest for hostile: every index and
// header field is checked as a private copy, every buffer is bounded by the
// credit it granted, and the first violation latches ErrCorrupt for good.
// Nothing the virtual processors call (HostPort.Kick, Transmit, ReceiveReady)
// ever blocks. The guest end (OpenGuest, Guest) trusts its host but survives a
// silent one.
//
// The package knows guest memory and nothing else: not KVM, not the machine's
// ports and UARTs (they come as callbacks), not processes.
package link
