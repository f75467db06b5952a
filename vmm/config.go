package vmm

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/hvpost/hvpost/firmware/boot"
	"github.com/hvpost/hvpost/firmware/cpuid"
	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/proto"
)

// MinMemory is the least RAM that New accepts, in bytes: the loaders need the
// first MiB for tables and some room above it.
const MinMemory = 4 << 20

// Guest physical address space outside RAM, whose own layout is boot.Layout's:
// between its two parts lie the window, the VMBus MMIO range, the IOAPIC and
// the LAPICs.
const (
	WindowBase = 0xD000_0000

	vmbusMMIOBase = 0xE000_0000
	vmbusMMIOSize = 0x1000_0000
	vmbusHighSize = 1 << 32
)

// Interrupt lines and ports of the chipset: those of a PC where one has them.
const (
	com1Port, com1IRQ = 0x3F8, 4
	com2Port, com2IRQ = 0x2F8, 3
	rtcPort           = 0x70
	sciIRQ            = 9
	pmPort            = 0x600
	kbdPort           = 0x64

	// trapPort and signalPort are what the hypercall page's program writes to.
	// Both fit the one-byte form of OUT and belong to no PC device; 0x80 and
	// 0xED, which Linux writes for delays, are not among them.
	trapPort, signalPort = 0xEA, 0xEB
)

// Config describes a machine.
type Config struct {
	// KVM is the device; empty is /dev/kvm.
	KVM string
	// VPs is the number of virtual processors, 1 to synic.MaxVPs.
	VPs int
	// Memory is the RAM in bytes, whole pages, at least MinMemory.
	Memory uint64

	// Load puts what is to run into memory and returns the state that VP 0
	// starts in. The firmware's tables are described by fw.
	Load func(mem *guest.Memory, fw Firmware) (boot.State, error)

	// HyperV is what CPUID shows; the zero value is cpuid.DefaultHyperV with
	// everything that this machine serves.
	HyperV *cpuid.HyperV

	// Console takes the output of the first UART. A slow writer loses bytes;
	// it never holds up the guest. Nil drops everything.
	Console io.Writer

	// Devices are offered on the VMBus when the guest asks for offers.
	Devices []vmbus.Device
	// NoVMBus leaves the bus and its ACPI node out.
	NoVMBus bool
	// VMBusMaxVersion limits what the server negotiates; 0 is the newest.
	VMBusMaxVersion proto.Version

	// Window is the size in bytes of the agent's shared memory at WindowBase,
	// a power of two of at least two pages; 0 is none. With a window come the
	// doorbell, a page right behind it whose writes call Doorbell with the
	// byte written, and the second UART, whose bytes go to Line. Both run on a
	// virtual processor and must not block.
	Window   uint64
	Doorbell func(value byte)
	Line     func(b byte)

	// ExitPort is the I/O port whose writes end the machine; 0 is none.
	ExitPort uint16

	// Version is this program's, shown as that of the firmware.
	Version string

	// Started is called once, just before VP 0 first enters the guest.
	Started func()

	// Log takes what an operator may want to know; nil drops it. Everything a
	// guest can cause to be logged is rate limited.
	Log *slog.Logger
}

func (c *Config) check() error {
	switch {
	case c.VPs < 1 || c.VPs > synic.MaxVPs:
		return fmt.Errorf("%d processors: a machine has 1 to %d", c.VPs, synic.MaxVPs)
	case c.Memory < MinMemory || c.Memory%guest.PageSize != 0:
		return fmt.Errorf("memory of %d bytes: must be whole pages and at least %d MiB", c.Memory, MinMemory>>20)
	case c.Load == nil:
		return fmt.Errorf("machine without a loader")
	case c.Window != 0 && (c.Window&(c.Window-1) != 0 || c.Window < 2*guest.PageSize || c.Window > vmbusMMIOBase-WindowBase):
		return fmt.Errorf("window of %d bytes: not a power of two that fits", c.Window)
	}
	if c.KVM == "" {
		c.KVM = "/dev/kvm"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}
