// Package guest is guest physical memory: addresses, page ranges and the RAM
// itself.
//
// It is the only package that touches guest RAM. The guest is hostile and
// writes its memory at any time from any virtual processor, so bytes are
// copied out once, validated as a copy, and used as a copy. No slice of guest
// RAM leaves this package, except the vectors that Iovecs builds for a system
// call, whose contents nobody in this program reads.
//
// The package is a leaf: it knows nothing of KVM, of the SynIC or of VMBus,
// and needs neither a VM nor /dev/kvm.
package guest
