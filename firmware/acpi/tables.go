package acpi

import (
	"encoding/binary"
	"fmt"

	"github.com/hvpost/hvpost/guest"
)

var le = binary.LittleEndian

// Sizes in bytes of the fixed tables.
const (
	headerLen = 36
	rsdpLen   = 36
	fadtLen   = 276 // revision 6
	facsLen   = 64
)

const (
	oemID      = "HVPOST"
	oemTableID = "HVPOST  "
	creatorID  = "HVPO"
)

// header starts a system description table. finish sets length and checksum.
func header(signature string, revision uint8) []byte {
	b := make([]byte, headerLen)
	copy(b, signature)
	b[8] = revision
	copy(b[10:], oemID)
	copy(b[16:], oemTableID)
	le.PutUint32(b[24:], 1) // OEM revision
	copy(b[28:], creatorID)
	le.PutUint32(b[32:], 1)
	return b
}

func finish(b []byte) []byte {
	le.PutUint32(b[4:], uint32(len(b)))
	b[9] = 0
	b[9] = checksum(b)
	return b
}

// checksum returns the byte that brings the sum of b to 0.
func checksum(b []byte) byte {
	var sum byte
	for _, v := range b {
		sum += v
	}
	return -sum
}

// putIO writes a generic address structure for an I/O register of the given
// width in bytes (ACPI, "Generic Address Structure").
func putIO(b []byte, port uint16, width uint8) {
	b[0] = 1 // system I/O
	b[1] = width * 8
	b[3] = min(width, 2) // access size: 1 byte, 2 word
	le.PutUint64(b[4:], uint64(port))
}

// FADT flags (ACPI, "Fixed ACPI Description Table Fixed Feature Flags").
// The clear bit 4 says that the power button is a fixed feature, bit 8 of
// PM1_STS.
const (
	fadtWBINVD      = 1 << 0
	fadtProcC1      = 1 << 2
	fadtSleepButton = 1 << 5 // not a fixed feature
	fadtFixRTC      = 1 << 6 // RTC wake status is not in PM1
	fadtResetReg    = 1 << 10
	fadtHeadless    = 1 << 12
)

// FADT boot architecture flags (ACPI, "Fixed ACPI Description Table Boot
// IA-PC Boot Architecture Flags"). Bit 1, the 8042, stays clear. Bit 3 (no
// MSI) stays clear too: Linux would refuse MSI to devices on a VMBus PCI.
const (
	bootLegacyDevices = 1 << 0
	bootNoVGA         = 1 << 2
	bootNoASPM        = 1 << 4
	bootNoRTC         = 1 << 5
)

func fadt(c Config, facs, dsdt guest.GPA) []byte {
	b := append(header("FACP", 6), make([]byte, fadtLen-headerLen)...)
	le.PutUint32(b[36:], uint32(facs)) // X_FIRMWARE_CTRL stays 0: one of the two
	le.PutUint32(b[40:], uint32(dsdt))
	b[45] = 4 // preferred profile: enterprise server
	le.PutUint16(b[46:], uint16(c.SCI))
	// SMI_CMD 0 tells the guest that ACPI mode is on for good.
	le.PutUint32(b[56:], uint32(c.PMBase))
	le.PutUint32(b[64:], uint32(c.PMBase)+PM1ControlOffset)
	b[88] = PM1EventLen
	b[89] = PM1ControlLen
	le.PutUint16(b[96:], 0xFFFF) // no C2
	le.PutUint16(b[98:], 0xFFFF) // no C3
	if c.RTC {
		b[108] = 0x32 // CMOS index of the century
	}
	boot := uint16(bootNoVGA | bootNoASPM)
	if len(c.UARTs) != 0 {
		boot |= bootLegacyDevices
	}
	if !c.RTC {
		boot |= bootNoRTC
	}
	le.PutUint16(b[109:], boot)
	le.PutUint32(b[112:], fadtWBINVD|fadtProcC1|fadtSleepButton|fadtFixRTC|fadtResetReg|fadtHeadless)
	putIO(b[116:], c.ResetPort, 1)
	b[128] = c.ResetValue
	b[131] = 5 // minor version
	le.PutUint64(b[140:], uint64(dsdt))
	putIO(b[148:], c.PMBase, PM1EventLen)
	putIO(b[172:], c.PMBase+PM1ControlOffset, PM1ControlLen)
	copy(b[268:], "MsHyperV") // hypervisor vendor identity
	return finish(b)
}

// facs is the firmware ACPI control structure: no checksum, no waking vector.
func facs() []byte {
	b := make([]byte, facsLen)
	copy(b, "FACS")
	le.PutUint32(b[4:], facsLen)
	b[32] = 2 // version
	return b
}

// MADT structure types.
const (
	madtLocalAPIC      = 0
	madtIOAPIC         = 1
	madtSourceOverride = 2
	madtLocalAPICNMI   = 4
	madtLocalX2APIC    = 9
	madtLocalX2APICNMI = 10
)

func madt(c Config) []byte {
	const (
		localAPIC     = 0xFEE00000
		pcatCompat    = 1 // there is an 8259 pair, and it must be masked
		enabled       = 1
		levelHigh     = 0xD
		allProcessors = 0xFF
	)
	b := header("APIC", 5)
	b = le.AppendUint32(b, localAPIC)
	b = le.AppendUint32(b, pcatCompat)
	var wide bool
	for vp, id := range c.APICIDs {
		// 255 is the broadcast id of xAPIC and the "all" UID of the short
		// entries.
		if id < 255 && vp < 255 {
			b = append(b, madtLocalAPIC, 8, byte(vp), byte(id))
			b = le.AppendUint32(b, enabled)
			continue
		}
		wide = true
		b = append(b, madtLocalX2APIC, 16, 0, 0)
		b = le.AppendUint32(b, id)
		b = le.AppendUint32(b, enabled)
		b = le.AppendUint32(b, uint32(vp))
	}
	b = append(b, madtIOAPIC, 12, c.IOAPICID, 0)
	b = le.AppendUint32(b, uint32(c.IOAPIC))
	b = le.AppendUint32(b, 0) // first GSI
	// Without a PIT nothing drives ISA interrupt 0, so only the SCI differs
	// from the identity map: level triggered, active high.
	b = append(b, madtSourceOverride, 10, 0, c.SCI)
	b = le.AppendUint32(b, uint32(c.SCI))
	b = le.AppendUint16(b, levelHigh)
	b = append(b, madtLocalAPICNMI, 6, allProcessors, 0, 0, 1)
	if wide {
		b = append(b, madtLocalX2APICNMI, 12, 0, 0)
		b = le.AppendUint32(b, 0xFFFFFFFF)
		b = append(b, 1, 0, 0, 0)
	}
	return finish(b)
}

// pointers is an RSDT (4-byte entries) or an XSDT (8-byte entries).
func pointers(signature string, size int, tables ...guest.GPA) []byte {
	b := header(signature, 1)
	for _, t := range tables {
		b = append(b, le.AppendUint64(nil, uint64(t))[:size]...)
	}
	return finish(b)
}

func rsdp(rsdt, xsdt guest.GPA) []byte {
	b := make([]byte, rsdpLen)
	copy(b, "RSD PTR ")
	copy(b[9:], oemID)
	b[15] = 2
	le.PutUint32(b[16:], uint32(rsdt))
	le.PutUint32(b[20:], rsdpLen)
	le.PutUint64(b[24:], uint64(xsdt))
	b[8] = checksum(b[:20])
	b[32] = checksum(b)
	return b
}

// A Tables is a finished set of tables.
type Tables struct {
	Base  guest.GPA // where Image must be placed
	Image []byte
	RSDP  guest.GPA // inside Image
}

// Build lays the tables out from base on, which must be a multiple of 64 and
// leave them below 4 GiB. The RSDP comes first; if base lies in
// 0xE0000-0xFFFFF, guests that were given no pointer find it by scanning.
func Build(cfg Config, base guest.GPA) (Tables, error) {
	c := cfg.withDefaults()
	if err := c.check(); err != nil {
		return Tables{}, err
	}
	if base%64 != 0 {
		return Tables{}, fmt.Errorf("acpi: tables at %v: not a multiple of 64", base)
	}
	image := make([]byte, rsdpLen) // filled in last
	place := func(table []byte) guest.GPA {
		// The FACS must be aligned to 64 bytes, the others may be.
		for len(image)%64 != 0 {
			image = append(image, 0)
		}
		a := base + guest.GPA(len(image))
		image = append(image, table...)
		return a
	}
	control := place(facs())
	definition := place(finish(append(header("DSDT", 2), dsdt(c)...)))
	fixed := place(fadt(c, control, definition))
	apics := place(madt(c))
	rsdt := place(pointers("RSDT", 4, fixed, apics))
	xsdt := place(pointers("XSDT", 8, fixed, apics))
	copy(image, rsdp(rsdt, xsdt))
	if end, ok := base.Add(uint64(len(image))); !ok || end > 1<<32 {
		return Tables{}, fmt.Errorf("acpi: %d bytes of tables at %v: must lie below 4 GiB", len(image), base)
	}
	return Tables{Base: base, Image: image, RSDP: base}, nil
}

// Write builds the tables and puts them into guest memory within area. It
// returns the address of the RSDP and the bytes used from area.Base on.
func Write(mem *guest.Memory, cfg Config, area Range) (rsdp guest.GPA, size uint64, err error) {
	t, err := Build(cfg, area.Base)
	if err != nil {
		return 0, 0, err
	}
	size = uint64(len(t.Image))
	if size > area.Size {
		return 0, 0, fmt.Errorf("acpi: tables of %d bytes do not fit into the %d bytes at %v", size, area.Size, area.Base)
	}
	if err := mem.WriteAt(t.Image, t.Base); err != nil {
		return 0, 0, fmt.Errorf("acpi: tables: %w", err)
	}
	return t.RSDP, size, nil
}
