package guest

import (
	"sync/atomic"
	"unsafe"
)

// The guest is one side of every race on its own RAM, and the race detector
// cannot see that side. The copies below are therefore kept out of its sight:
// what it checks is this program's own state. Order between the two sides
// comes from Word and Word64.

// copyGuest copies between guest RAM and a private buffer, the shorter of the
// two.
//
//go:norace
func copyGuest(dst, src []byte) {
	copy(dst, src)
}

//go:norace
func zeroGuest(b []byte) {
	clear(b)
}

func word32(b []byte) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(unsafe.SliceData(b)))
}

func word64(b []byte) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(b)))
}

// HostAddr returns the address in this process of the region that starts at
// base, for the ioctl that gives the region to KVM, or 0.
func (m *Memory) HostAddr(base GPA) uintptr {
	r := m.find(base)
	if r == nil || r.Base != base {
		return 0
	}
	return uintptr(unsafe.Pointer(unsafe.SliceData(r.mem)))
}
