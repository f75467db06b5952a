package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// DefaultPath is where the kernel puts the device.
const DefaultPath = "/dev/kvm"

// apiVersion is the only value that KVM_GET_API_VERSION may have.
const apiVersion = 12

// A System is an open /dev/kvm. Its methods may be called from any goroutine.
type System struct {
	fd       int
	path     string
	mmapSize int
}

// Open opens the device at path, DefaultPath if it is empty. errors.Is tells
// ErrMissing, ErrDenied, ErrNoHardware and ErrAPIVersion apart.
func Open(path string) (*System, error) {
	if path == "" {
		path = DefaultPath
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	for err == unix.EINTR {
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, openError(path, err)
	}
	s := &System{fd: fd, path: path}
	if err := s.init(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return s, nil
}

func (s *System) init() error {
	v, err := s.APIVersion()
	if err != nil {
		return openError(s.path, err)
	}
	if v != apiVersion {
		return fmt.Errorf("%s: %w (found version %d)", s.path, ErrAPIVersion, v)
	}
	if s.mmapSize, err = ioctl(s.fd, reqGetVCPUMmapSize, 0); err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	if s.mmapSize < runSize {
		return fmt.Errorf("%s: %w: %d bytes", s.path, ErrRunPage, s.mmapSize)
	}
	return nil
}

// Close closes the device. VMs made from it live on.
func (s *System) Close() error {
	if s.fd < 0 {
		return nil
	}
	err := unix.Close(s.fd)
	s.fd = -1
	return err
}

// Path returns the path that was opened.
func (s *System) Path() string { return s.path }

// APIVersion asks for the version of the interface.
func (s *System) APIVersion() (int, error) { return ioctl(s.fd, reqGetAPIVersion, 0) }

// VCPUMmapSize returns the size of the run area of a VCPU in bytes.
func (s *System) VCPUMmapSize() int { return s.mmapSize }

// Check returns what KVM_CHECK_EXTENSION says of c: 0 for absent, otherwise 1
// or a number that the capability defines.
func (s *System) Check(c Cap) int { return check(s.fd, c) }

func check(fd int, c Cap) int {
	n, err := ioctl(fd, reqCheckExtension, uintptr(c))
	if err != nil {
		return 0 // a kernel that does not know the question has not the thing
	}
	return n
}

// CreateVM makes an empty VM: no memory, no processors, no interrupt chip.
func (s *System) CreateVM() (*VM, error) {
	fd, err := ioctl(s.fd, reqCreateVM, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.path, err)
	}
	return &VM{fd: fd, mmapSize: s.mmapSize, syncable: SyncClass(check(fd, CapSyncRegs))}, nil
}

// Bounds of tables that the kernel sizes. KVM_MAX_CPUID_ENTRIES is 256 and
// the MSR lists hold a few hundred; 4096 ends the doubling on a kernel that
// never says enough.
const (
	firstTable = 256
	maxTable   = 4096
)

const cpuidEntrySize = 40

// SupportedCPUID returns the leaves that host and KVM can give to a guest.
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	return getCPUID(s.fd, reqGetSupportedCPUID)
}

func getCPUID(fd int, r request) ([]CPUIDEntry, error) {
	for n := firstTable; ; n *= 2 {
		b := make([]byte, sizeCPUID+n*cpuidEntrySize)
		binary.LittleEndian.PutUint32(b, uint32(n))
		_, err := ioctlBuf(fd, r, b)
		if errors.Is(err, unix.E2BIG) && n < maxTable {
			continue
		}
		if err != nil {
			return nil, err
		}
		got := binary.LittleEndian.Uint32(b)
		return decodeCPUID(b[sizeCPUID:], min(int(got), n)), nil
	}
}

func decodeCPUID(b []byte, n int) []CPUIDEntry {
	es := make([]CPUIDEntry, n)
	for i := range es {
		e := &es[i]
		for j, p := range []*uint32{&e.Function, &e.Index, &e.Flags, &e.Eax, &e.Ebx, &e.Ecx, &e.Edx} {
			*p = binary.LittleEndian.Uint32(b[i*cpuidEntrySize+4*j:])
		}
	}
	return es
}

func encodeCPUID(es []CPUIDEntry) []byte {
	b := make([]byte, sizeCPUID, sizeCPUID+len(es)*cpuidEntrySize)
	binary.LittleEndian.PutUint32(b, uint32(len(es)))
	for i := range es {
		e := &es[i]
		for _, v := range [...]uint32{e.Function, e.Index, e.Flags, e.Eax, e.Ebx, e.Ecx, e.Edx, 0, 0, 0} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
	}
	return b
}

// MSRIndexList returns the MSRs that MSRs and SetMSRs can save and restore.
func (s *System) MSRIndexList() ([]uint32, error) {
	for n := firstTable; ; n *= 2 {
		b := make([]byte, sizeMSRList+4*n)
		binary.LittleEndian.PutUint32(b, uint32(n))
		_, err := ioctlBuf(s.fd, reqGetMSRIndexList, b)
		if errors.Is(err, unix.E2BIG) && n < maxTable {
			continue
		}
		if err != nil {
			return nil, err
		}
		list := make([]uint32, min(int(binary.LittleEndian.Uint32(b)), n))
		for i := range list {
			list[i] = binary.LittleEndian.Uint32(b[sizeMSRList+4*i:])
		}
		return list, nil
	}
}
