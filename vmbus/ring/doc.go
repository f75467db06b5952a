// Package ring is one direction of a VMBus channel: packets of bytes in a
// ring of guest pages, written by one end and read by the other.
//
//	page 0   write index, read index, interrupt mask, pending send size, feature bits
//	page 1…  packets: descriptor, ranges, payload padded to 8, trailer of 8 bytes
//
// The same Reader and Writer serve the host's end and a guest's. Each keeps
// its own index private and only ever publishes it; what the peer wrote into
// the header is a hint that is loaded once and validated. A Reader copies
// every byte of a packet exactly once out of the ring, parses the copy, and
// never looks back. Whatever cannot be right latches ErrCorrupt for good: a
// peer that scribbles over its ring has lost the channel, not more.
//
// The package has no goroutines and never blocks. It tells its owner when the
// protocol demands a signal to the peer (by a callback), and when there is
// nothing to read or no room to write; waiting is the owner's business. It
// does not know what the payloads mean, who the guest is, or what a signal
// costs.
//
// Where the protocol wants a full barrier between a store and a load, the
// store is a Swap. On x86 the compiler makes the same instruction of both, but
// a program built with the race detector gets a plain store for Store, and
// then loses a wake-up now and then.
//
// The protocol is that of Linux drivers/hv/ring_buffer.c.
package ring
