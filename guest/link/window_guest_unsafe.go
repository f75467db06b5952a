package link

import (
	"sync/atomic"
	"unsafe"
)

// sliceMem is the window as mapped into this process, by the agent from
// /dev/mem or by a test. The slice is page aligned, as mappings are.
type sliceMem []byte

func (m sliceMem) size() uint32 { return uint32(len(m)) }

func (m sliceMem) word(off uint32) *atomic.Uint32 {
	b := m[off : off+4 : off+4]
	p := unsafe.Pointer(unsafe.SliceData(b))
	if uintptr(p)%4 != 0 {
		panic("link: window word not aligned")
	}
	return (*atomic.Uint32)(p)
}

// The peer writes the same bytes from another address space, which the race
// detector cannot follow; order comes from the index words.

//go:norace
func (m sliceMem) read(p []byte, off uint32) { copy(p, m[off:off+uint32(len(p))]) }

//go:norace
func (m sliceMem) write(p []byte, off uint32) { copy(m[off:off+uint32(len(p))], p) }

// ringDoorbell writes the doorbell's first word with a single plain store: the
// page has no memory behind it, and each access is an exit to the host.
//
//go:noinline
//go:norace
func ringDoorbell(bell []byte) {
	*(*uint32)(unsafe.Pointer(unsafe.SliceData(bell[:4]))) = DoorbellWindow
}
