package kvm

import (
	"encoding/binary"
	"fmt"
)

// Offsets in struct kvm_run of linux/kvm.h.
const (
	offExitReason        = 8
	offReadyForInjection = 12
	offIFFlag            = 13
	offRunFlags          = 14
	offCR8               = 16
	offAPICBase          = 24
	offUnion             = 32 // 256 bytes, one struct for each exit reason
	offValidRegs         = 288
	offDirtyRegs         = 296
	offSyncRegs          = 304
	offSyncSregs         = offSyncRegs + sizeRegs
	offSyncEvents        = offSyncSregs + sizeSregs

	runSize = 2352
)

// Bounds of the arrays inside the union.
const (
	maxExitData = 16 // words of internal errors and system events
	maxMMIO     = 8  // bytes
)

// decode reads the exit off the run page. The kernel wrote it, so a page that
// contradicts itself is a host failure; still nothing is taken from outside.
func (e *Exit) decode() error {
	if len(e.page) < runSize {
		return fmt.Errorf("%w: %d bytes", ErrRunPage, len(e.page))
	}
	le := binary.LittleEndian
	e.Reason = Reason(le.Uint32(e.page[offExitReason:]))
	e.Flags = RunFlags(le.Uint16(e.page[offRunFlags:]))
	u := e.page[offUnion:offValidRegs]
	switch e.Reason {
	case ExitIO:
		return e.decodeIO(u)
	case ExitMMIO:
		n := le.Uint32(u[16:])
		if n == 0 || n > maxMMIO {
			return fmt.Errorf("%w: MMIO of %d bytes", ErrRunPage, n)
		}
		e.MMIO = MMIOExit{GPA: le.Uint64(u), Write: u[20] != 0, Data: u[8 : 8+n : 8+n]}
	case ExitRDMSR, ExitWRMSR:
		e.MSR = MSRExit{Index: le.Uint32(u[12:]), Write: e.Reason == ExitWRMSR,
			Data: le.Uint64(u[16:]), Reason: MSRReason(le.Uint32(u[8:]))}
	case ExitDebug:
		e.Debug = DebugExit{Exception: le.Uint32(u), PC: le.Uint64(u[8:]), DR6: le.Uint64(u[16:]), DR7: le.Uint64(u[24:])}
	case ExitInternalError:
		e.Internal.Suberror = le.Uint32(u)
		return decodeData(u, &e.Internal.NData, &e.Internal.Data)
	case ExitSystemEvent:
		e.SystemEvent.Type = le.Uint32(u)
		return decodeData(u, &e.SystemEvent.NData, &e.SystemEvent.Data)
	case ExitFailEntry:
		e.FailEntry = FailEntryExit{HardwareReason: le.Uint64(u), CPU: le.Uint32(u[8:])}
	case ExitHyperV:
		e.decodeHyperV(u)
	case ExitHypercall:
		e.Hypercall = HypercallExit{Nr: le.Uint64(u), Flags: le.Uint64(u[64:])}
		for i := range e.Hypercall.Args {
			e.Hypercall.Args[i] = le.Uint64(u[8+8*i:])
		}
	case ExitXen:
		e.Xen = XenExit{Type: le.Uint32(u), LongMode: le.Uint32(u[8:]), CPL: le.Uint32(u[12:]), Input: le.Uint64(u[16:])}
		for i := range e.Xen.Params {
			e.Xen.Params[i] = le.Uint64(u[32+8*i:])
		}
	case ExitTPRAccess:
		e.TPRAccess = TPRAccessExit{RIP: le.Uint64(u), Write: le.Uint32(u[8:]) != 0}
	case ExitMemoryFault:
		e.MemoryFault = MemoryFaultExit{Flags: le.Uint64(u), GPA: le.Uint64(u[8:]), Size: le.Uint64(u[16:])}
	case ExitException:
		e.Exception = ExceptionExit{Vector: le.Uint32(u), ErrorCode: le.Uint32(u[4:])}
	case ExitIOAPICEOI:
		e.EOIVector = u[0]
	case ExitNotify:
		e.NotifyFlags = le.Uint32(u)
	case ExitUnknown:
		e.HardwareCode = le.Uint64(u)
	}
	return nil
}

func (e *Exit) decodeIO(u []byte) error {
	le := binary.LittleEndian
	size, count, off := u[1], le.Uint32(u[4:]), le.Uint64(u[8:])
	n := uint64(size) * uint64(count) // below 2^40
	switch {
	case size != 1 && size != 2 && size != 4, u[0] > 1, count == 0:
		return fmt.Errorf("%w: port access, direction %d, %d of %d bytes", ErrRunPage, u[0], count, size)
	case off < runSize || off > uint64(len(e.page)) || n > uint64(len(e.page))-off:
		return fmt.Errorf("%w: port data, %d bytes at %#x of %#x", ErrRunPage, n, off, len(e.page))
	}
	e.IO = IOExit{Out: u[0] == 1, Size: size, Port: le.Uint16(u[2:]), Count: count,
		Data: e.page[off : off+n : off+n]}
	return nil
}

// decodeData reads the counted words that internal errors and system events
// carry.
func decodeData(u []byte, n *int, data *[maxExitData]uint64) error {
	count := binary.LittleEndian.Uint32(u[4:])
	if count > maxExitData {
		*n = 0
		return fmt.Errorf("%w: %d words of data", ErrRunPage, count)
	}
	*n = int(count)
	for i := range data {
		data[i] = 0
		if i < *n {
			data[i] = binary.LittleEndian.Uint64(u[8+8*i:])
		}
	}
	return nil
}

func (e *Exit) decodeHyperV(u []byte) {
	le := binary.LittleEndian
	e.HyperV = HyperVExit{Type: le.Uint32(u)}
	first, n := 16, 0
	switch e.HyperV.Type {
	case HyperVSynIC:
		n = 3
	case HyperVSynDebug:
		n = 5
	case HyperVHcall:
		first, n = 8, 4
	}
	if first == 16 {
		e.HyperV.MSR = le.Uint32(u[8:])
	}
	for i := range n {
		e.HyperV.Words[i] = le.Uint64(u[first+8*i:])
	}
}

// CompleteRDMSR answers an ExitRDMSR: with val, or with #GP if ok is false.
func (e *Exit) CompleteRDMSR(val uint64, ok bool) {
	if e.Reason != ExitRDMSR {
		panic("kvm: CompleteRDMSR of " + e.Reason.String())
	}
	binary.LittleEndian.PutUint64(e.page[offUnion+16:], val)
	e.completeMSR(ok)
}

// CompleteWRMSR answers an ExitWRMSR: the write is done, or raises #GP if ok
// is false.
func (e *Exit) CompleteWRMSR(ok bool) {
	if e.Reason != ExitWRMSR {
		panic("kvm: CompleteWRMSR of " + e.Reason.String())
	}
	e.completeMSR(ok)
}

func (e *Exit) completeMSR(ok bool) {
	e.page[offUnion] = 0
	if !ok {
		e.page[offUnion] = 1
	}
}
