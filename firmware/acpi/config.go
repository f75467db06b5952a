package acpi

import (
	"fmt"

	"github.com/hvpost/hvpost/guest"
)

// MaxVPs bounds the processors of one set of tables. It keeps the DSDT within
// the 64 KiB that the boot memory map sets aside, at about 30 bytes a
// processor here and 16 in the MADT.
const MaxVPs = 1024

// A Range is a piece of guest physical address space.
type Range struct {
	Base guest.GPA
	Size uint64 // bytes; 0 means absent
}

func (r Range) end() uint64 { return uint64(r.Base) + r.Size }

// A Ports is a run of I/O ports.
type Ports struct {
	Base  uint16
	Count uint8 // 0 means absent
}

// A UART is a 16550 at eight I/O ports.
type UART struct {
	Port uint16
	IRQ  int // ISA interrupt, 0 to 15
}

// Widths of the PM1a registers in bytes, and where the control block lies
// relative to Config.PMBase. The event block holds PM1_STS and PM1_EN, two
// bytes each; both must keep what is written (PM1_EN) or clear what is
// written (PM1_STS), because Linux reads PM1_EN back.
const (
	PM1EventLen      = 4
	PM1ControlOffset = 4
	PM1ControlLen    = 2
	PMLen            = PM1ControlOffset + PM1ControlLen
)

// A Config describes the machine to its guest.
type Config struct {
	// APICIDs holds the local APIC id of each virtual processor; the
	// processor's index is its ACPI processor UID.
	APICIDs []uint32

	IOAPIC   guest.GPA // 0 means 0xFEC00000; GSI 0 to 23
	IOAPICID uint8

	UARTs []UART // COM1 first
	RTC   bool   // CMOS RTC at ports 0x70-0x71, interrupt 8

	PMBase uint16 // first of PMLen ports, see PM1ControlOffset
	SCI    uint8  // interrupt of the PM1a event block; 0 means 9

	ResetPort  uint16 // a byte write of ResetValue here resets the machine
	ResetValue uint8

	// S5 is the SLP_TYP value, 0 to 7, that powers the machine off when it is
	// written to PM1a control with SLP_EN.
	S5 uint8

	// Reserved ports belong to the machine (an exit port, for example) and
	// are kept from other drivers.
	Reserved []Ports

	VMBus bool // put the VMBus node into the DSDT
	// MMIOLow, below 4 GiB, and MMIOHigh, above all RAM, are the windows from
	// which VMBus drivers allocate. Either may be absent.
	MMIOLow, MMIOHigh Range
}

// SequentialAPICIDs returns the ids 0 to n-1.
func SequentialAPICIDs(n int) []uint32 {
	ids := make([]uint32, n)
	for i := range ids {
		ids[i] = uint32(i)
	}
	return ids
}

func (c Config) withDefaults() Config {
	if c.IOAPIC == 0 {
		c.IOAPIC = 0xFEC00000
	}
	if c.SCI == 0 {
		c.SCI = 9
	}
	return c
}

// check reports a configuration that no valid table can express.
func (c Config) check() error {
	if len(c.APICIDs) == 0 || len(c.APICIDs) > MaxVPs {
		return fmt.Errorf("acpi: %d virtual processors: must be 1 to %d", len(c.APICIDs), MaxVPs)
	}
	seen := make(map[uint32]bool)
	for vp, id := range c.APICIDs {
		if seen[id] {
			return fmt.Errorf("acpi: VP %d: APIC id %d is taken", vp, id)
		}
		seen[id] = true
	}
	for i, u := range c.UARTs {
		if u.IRQ < 0 || u.IRQ > 15 {
			return fmt.Errorf("acpi: UART %d: ISA interrupt %d: must be 0 to 15", i+1, u.IRQ)
		}
		if u.Port > 0xFFF8 {
			return fmt.Errorf("acpi: UART %d: eight ports at %#x end past port 0xffff", i+1, u.Port)
		}
	}
	if len(c.UARTs) > 9 {
		return fmt.Errorf("acpi: %d UARTs: at most 9 have names", len(c.UARTs))
	}
	if c.PMBase == 0 || uint32(c.PMBase)+PMLen > 1<<16 {
		return fmt.Errorf("acpi: PM ports at %#x: %d ports are needed at a base other than 0", c.PMBase, PMLen)
	}
	if c.SCI > 15 {
		return fmt.Errorf("acpi: SCI on interrupt %d: must be 1 to 15", c.SCI)
	}
	if c.S5 > 7 {
		return fmt.Errorf("acpi: S5 sleep type %d: must be 0 to 7", c.S5)
	}
	if uint64(c.IOAPIC) > 1<<32-1 {
		return fmt.Errorf("acpi: IOAPIC at %v: must lie below 4 GiB", c.IOAPIC)
	}
	for _, p := range c.Reserved {
		if uint32(p.Base)+uint32(p.Count) > 1<<16 {
			return fmt.Errorf("acpi: %d reserved ports at %#x end past port 0xffff", p.Count, p.Base)
		}
	}
	if r := c.MMIOLow; r.Size != 0 && (uint64(r.Base) >= 1<<32 || r.Size > 1<<32-uint64(r.Base)) {
		return fmt.Errorf("acpi: low MMIO window of %#x bytes at %v: must lie below 4 GiB", r.Size, r.Base)
	}
	if r := c.MMIOHigh; r.Size != 0 && (r.end() < r.Size || uint64(r.Base) < 1<<32) {
		return fmt.Errorf("acpi: high MMIO window of %#x bytes at %v: must lie above 4 GiB", r.Size, r.Base)
	}
	return nil
}
