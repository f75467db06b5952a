// Package vmbustest is the guest's end of VMBus inside a test process: a guest
// that connects, opens channels, exchanges packets and answers integration
// services in the order and with the sizes of Linux's drivers, over the same
// guest.Memory as the server under test.
//
// A Guest talks to a Machine: a Fake, which is nothing but queues, or a real
// SynIC (NewSynIC). Raw messages can be posted beside the well-behaved ones,
// for tests of what a hostile kernel might do.
//
// Nothing here is linked into the program.
package vmbustest
