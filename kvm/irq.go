package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// CreateIRQChip makes the in-kernel PICs, IOAPIC and, for every VCPU made
// afterwards, local APIC. It goes before the first VCPU.
func (m *VM) CreateIRQChip() error {
	_, err := ioctl(m.fd, reqCreateIRQChip, 0)
	return err
}

// GetIRQChip fills c with the state of the chip that c.ChipID names.
func (m *VM) GetIRQChip(c *IRQChip) error {
	_, err := ioctlPtr(m.fd, reqGetIRQChip, c)
	return err
}

// SetIRQChip sets the state of the chip that c.ChipID names.
func (m *VM) SetIRQChip(c *IRQChip) error {
	_, err := ioctlPtr(m.fd, reqSetIRQChip, c)
	return err
}

// SignalMSI sends a message-signalled interrupt to the local APICs: addr is
// 0xFEE00000 with the destination in bits 12-19 (and, past 255, in the upper
// half as Linux's x2APIC format has it), data the vector and its mode. It
// reports whether an APIC took it: a guest that switched its APIC off, or
// masked the interrupt, makes it false without an error.
func (m *VM) SignalMSI(addr uint64, data uint32) (delivered bool, err error) {
	n, err := ioctlPtr(m.fd, reqSignalMSI, &msi{addressLo: uint32(addr), addressHi: uint32(addr >> 32), data: data})
	if errors.Is(err, unix.EPERM) {
		// kvm_irq_delivery_to_apic returns -1 if it found no destination,
		// and the system call makes an errno of it.
		return false, nil
	}
	return n > 0, err
}

// IRQLine sets the level of an input of the interrupt chips.
func (m *VM) IRQLine(gsi uint32, level bool) error {
	l := irqLevel{irq: gsi}
	if level {
		l.level = 1
	}
	if _, err := ioctlPtr(m.fd, reqIRQLine, &l); err != nil {
		return fmt.Errorf("%w (GSI %d)", err, gsi)
	}
	return nil
}

// Flags of struct kvm_irqfd.
const (
	irqfdDeassign = 1 << 0
	irqfdResample = 1 << 1
)

// IRQFD ties an eventfd to a GSI: each write to fd raises it, as an edge, or,
// with a resample eventfd, as a level that the guest's EOI lowers; the EOI
// then signals resample. Pass a resample of -1 for an edge.
func (m *VM) IRQFD(gsi uint32, fd, resample int) error {
	r := irqfd{fd: uint32(fd), gsi: gsi}
	if resample >= 0 {
		r.flags, r.resample = irqfdResample, uint32(resample)
	}
	if _, err := ioctlPtr(m.fd, reqIRQFD, &r); err != nil {
		return fmt.Errorf("%w (GSI %d, fd %d)", err, gsi, fd)
	}
	return nil
}

// RemoveIRQFD undoes IRQFD.
func (m *VM) RemoveIRQFD(gsi uint32, fd int) error {
	if _, err := ioctlPtr(m.fd, reqIRQFD, &irqfd{fd: uint32(fd), gsi: gsi, flags: irqfdDeassign}); err != nil {
		return fmt.Errorf("%w (GSI %d, fd %d, removal)", err, gsi, fd)
	}
	return nil
}

// An IOEvent is a guest write that the kernel turns into a write of 1 to an
// eventfd, without an exit.
type IOEvent struct {
	Addr  uint64
	Len   uint32 // bytes of the write: 1, 2, 4 or 8; 0 for any (no Match then)
	PIO   bool   // Addr is a port, otherwise a guest physical address
	Match bool   // only writes of Data count; others exit
	Data  uint64
	FD    int
}

// Flags of struct kvm_ioeventfd.
const (
	ioeventMatch    = 1 << 0
	ioeventPIO      = 1 << 1
	ioeventDeassign = 1 << 2
)

// IOEventFD adds e. Several may share an address if all match different data.
func (m *VM) IOEventFD(e IOEvent) error { return m.ioEvent(e, 0) }

// RemoveIOEventFD removes e, which must be equal to what was added.
func (m *VM) RemoveIOEventFD(e IOEvent) error { return m.ioEvent(e, ioeventDeassign) }

func (m *VM) ioEvent(e IOEvent, flags uint32) error {
	if e.PIO {
		flags |= ioeventPIO
	}
	if e.Match {
		flags |= ioeventMatch
	}
	r := ioeventfd{datamatch: e.Data, addr: e.Addr, length: e.Len, fd: int32(e.FD), flags: flags}
	if _, err := ioctlPtr(m.fd, reqIOEventFD, &r); err != nil {
		return fmt.Errorf("%w (%+v)", err, e)
	}
	return nil
}

// A Route leads a GSI to a pin of an in-kernel chip or, if MSI is set, to a
// message.
type Route struct {
	GSI  uint32
	MSI  bool
	Chip uint32 // ChipPICMaster, ChipPICSlave or ChipIOAPIC
	Pin  uint32
	Addr uint64 // of the message
	Data uint32 // of the message
}

// Entries of struct kvm_irq_routing: 48 bytes, the union from byte 16 on.
// gokvm's are half as long.
const (
	routeSize    = 48
	routeIRQChip = 1
	routeMSI     = 2
)

// SetGSIRouting replaces the whole routing table.
func (m *VM) SetGSIRouting(routes []Route) error {
	_, err := ioctlBuf(m.fd, reqSetGSIRouting, encodeRoutes(routes))
	return err
}

func encodeRoutes(routes []Route) []byte {
	b := make([]byte, sizeRouting+len(routes)*routeSize)
	le := binary.LittleEndian
	le.PutUint32(b, uint32(len(routes)))
	for i, r := range routes {
		e := b[sizeRouting+i*routeSize:][:routeSize]
		le.PutUint32(e, r.GSI)
		if r.MSI {
			le.PutUint32(e[4:], routeMSI)
			le.PutUint64(e[16:], r.Addr)
			le.PutUint32(e[24:], r.Data)
			continue
		}
		le.PutUint32(e[4:], routeIRQChip)
		le.PutUint32(e[16:], r.Chip)
		le.PutUint32(e[20:], r.Pin)
	}
	return b
}
