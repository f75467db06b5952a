package kvm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The conversions to uintptr stand inside the calls of the system call, as
// the rules of package unsafe want it: an argument converted earlier, as
// gokvm's own Ioctl takes it, does not follow its object when the stack moves.

// ioctl passes a number. A call interrupted before it had any effect is
// repeated: KVM_CREATE_VM, for one, gives up on any pending signal.
func ioctl(fd int, r request, arg uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), r.code, arg)
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return int(n), r.fail(errno)
		}
	}
}

// ioctlPtr passes a struct, in or out.
func ioctlPtr[T any](fd int, r request, p *T) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), r.code, uintptr(unsafe.Pointer(p)))
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return int(n), r.fail(errno)
		}
	}
}

// ioctlBuf passes a struct with a variable tail, encoded.
func ioctlBuf(fd int, r request, b []byte) (int, error) {
	return ioctlPtr(fd, r, unsafe.SliceData(b))
}

// enter is one KVM_RUN, EINTR and all.
func enter(fd int) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), reqRun.code, 0)
	return errno
}

// sigtimedwait takes one pending signal of the set off the calling thread
// without waiting; EAGAIN says that none was pending.
func sigtimedwait(set uint64) unix.Errno {
	var zero unix.Timespec
	_, _, errno := unix.Syscall6(unix.SYS_RT_SIGTIMEDWAIT,
		uintptr(unsafe.Pointer(&set)), 0, uintptr(unsafe.Pointer(&zero)), unsafe.Sizeof(set), 0, 0)
	return errno
}

// pageWord returns the aligned 32-bit word at off of the run page for atomic
// access.
func pageWord(page []byte, off int) *uint32 {
	return (*uint32)(unsafe.Pointer(&page[off : off+4][0]))
}

// overlay returns the T at off of the run page. The page is shared with the
// kernel alone, never with the guest.
func overlay[T any](page []byte, off int) *T {
	var t T
	return (*T)(unsafe.Pointer(&page[off : off+int(unsafe.Sizeof(t))][0]))
}

// msrFilter is struct kvm_msr_filter.
type msrFilter struct {
	flags  uint32
	_      uint32
	ranges [maxMSRRanges]msrFilterRange
}

// msrFilterRange is struct kvm_msr_filter_range.
type msrFilterRange struct {
	flags  uint32
	nmsrs  uint32
	base   uint32
	_      uint32
	bitmap unsafe.Pointer
}

// denyAll is the bitmap of every range that SetMSRFilter builds: no bit set,
// no access allowed.
var denyAll [maxMSRBitmap]byte

func (r *msrFilterRange) deny() { r.bitmap = unsafe.Pointer(&denyAll) }
