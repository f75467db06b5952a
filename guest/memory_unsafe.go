package guest

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
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

const rw = unix.PROT_READ | unix.PROT_WRITE

// mapAnonymous maps zero pages for a region. KVM maps a huge page only where
// guest and host address are the same within one, which kernels before 6.7
// leave to chance; so more is mapped than needed, and the ends go back.
func mapAnonymous(base GPA, size uint64) ([]byte, error) {
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(size+hugePage), rw, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	head := (uintptr(base) - uintptr(p)) % hugePage
	mem := unsafe.Slice((*byte)(unsafe.Add(p, head)), size)
	if head > 0 {
		err = unix.MunmapPtr(p, head)
	}
	if tail := hugePage - head; err == nil && tail > 0 {
		err = unix.MunmapPtr(unsafe.Add(p, head+uintptr(size)), tail)
	}
	if err != nil {
		unmap(mem)
		return nil, err
	}
	return mem, nil
}

// mapFile maps size bytes of a file from off on, shared.
func mapFile(fd int, off int64, size uint64) ([]byte, error) {
	p, err := unix.MmapPtr(fd, off, nil, uintptr(size), rw, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), size), nil
}

func unmap(mem []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)))
}
