package acpi

import (
	"fmt"

	"github.com/hvpost/hvpost/firmware/acpi/aml"
)

// present is the _STA value of a device that is there, enabled, shown and
// working (ACPI, "_STA (Device Status)").
const present = 0xF

// dsdt returns the AML of the differentiated definition block, without the
// table header. It holds no PCI root (PNP0A03, PNP0A08): there is no PCI.
func dsdt(c Config) []byte {
	// _S5: SLP_TYP for PM1a and PM1b control, then two reserved elements.
	b := aml.Name(`\_S5`, aml.Package(
		aml.Integer(uint64(c.S5)), aml.Integer(uint64(c.S5)), aml.Integer(0), aml.Integer(0)))

	var devices [][]byte
	for vp := range c.APICIDs {
		devices = append(devices, aml.Device(fmt.Sprintf("C%03X", vp),
			aml.Name("_HID", aml.String("ACPI0007")),
			aml.Name("_UID", aml.Integer(uint64(vp))),
		))
	}
	devices = append(devices, board(c))
	for i, u := range c.UARTs {
		devices = append(devices, aml.Device(fmt.Sprintf("COM%d", i+1),
			aml.Name("_HID", aml.EISAID("PNP0501")),
			aml.Name("_UID", aml.Integer(uint64(i+1))),
			aml.Name("_STA", aml.Integer(present)),
			aml.Name("_CRS", aml.ResourceTemplate(aml.IO(u.Port, 8), aml.IRQNoFlags(u.IRQ))),
		))
	}
	if c.RTC {
		devices = append(devices, aml.Device("RTC",
			aml.Name("_HID", aml.EISAID("PNP0B00")),
			aml.Name("_CRS", aml.ResourceTemplate(aml.IO(0x70, 2), aml.IRQNoFlags(8))),
		))
	}
	if c.VMBus {
		devices = append(devices, vmbus(c))
	}
	return append(b, aml.Scope(`\_SB`, devices...)...)
}

// board claims the machine's own ports, so that no driver takes them for
// something else.
func board(c Config) []byte {
	crs := [][]byte{aml.IO(c.PMBase, PMLen), aml.IO(c.ResetPort, 1)}
	for _, p := range c.Reserved {
		if p.Count != 0 {
			crs = append(crs, aml.IO(p.Base, p.Count))
		}
	}
	return aml.Device("MBRD",
		aml.Name("_HID", aml.EISAID("PNP0C02")),
		aml.Name("_UID", aml.Integer(0)),
		aml.Name("_CRS", aml.ResourceTemplate(crs...)),
	)
}

// vmbus is the VMBus node under a module device that owns the MMIO windows.
// Linux (vmbus_walk_resources in drivers/hv/vmbus_drv.c) takes windows from
// address space descriptors in the _CRS of the node or its nearest ancestor;
// 6.12 would turn those of the node itself into resources of a platform
// device, so they are the parent's. The vector of VMBus is fixed, hence no
// interrupt descriptor.
func vmbus(c Config) []byte {
	module := [][]byte{
		aml.Name("_HID", aml.String("ACPI0004")),
		aml.Name("_UID", aml.Integer(0)),
	}
	var windows [][]byte
	flags := aml.AddressFlags{Producer: true, Cacheable: true}
	if r := c.MMIOLow; r.Size != 0 {
		windows = append(windows, aml.DWordMemory(uint64(r.Base), r.Size, flags))
	}
	if r := c.MMIOHigh; r.Size != 0 {
		windows = append(windows, aml.QWordMemory(uint64(r.Base), r.Size, flags))
	}
	if len(windows) != 0 {
		module = append(module, aml.Name("_CRS", aml.ResourceTemplate(windows...)))
	}
	module = append(module, aml.Device("VMBS",
		aml.Name("_ADR", aml.Integer(0)),
		aml.Name("_DDN", aml.String("VMBUS")),
		aml.Name("_HID", aml.String("VMBus")),
		aml.Name("_UID", aml.Integer(0)),
		aml.Name("_STA", aml.Integer(present)),
	))
	return aml.Device("VMOD", module...)
}
