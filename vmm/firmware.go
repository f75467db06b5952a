package vmm

import (
	"github.com/hvpost/hvpost/firmware/acpi"
	"github.com/hvpost/hvpost/firmware/boot"
	"github.com/hvpost/hvpost/firmware/smbios"
	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/vmm/chipset"
)

// A Firmware is what a loader must tell the guest of the machine.
type Firmware struct {
	// Map is the memory map: RAM, the firmware's tables, the window.
	Map []boot.Entry
	// RSDP is the address of the ACPI root pointer.
	RSDP guest.GPA
}

// firmware writes the ACPI and SMBIOS tables into RAM. highMMIO is where the
// address space after all RAM begins.
func (m *Machine) firmware(highMMIO guest.GPA) (Firmware, error) {
	var reserved []boot.Entry
	if m.cfg.Window > 0 {
		reserved = append(reserved, boot.Entry{Base: WindowBase, Size: m.cfg.Window + guest.PageSize, Type: boot.Reserved})
	}
	_, entries, err := boot.Layout(m.cfg.Memory, reserved...)
	if err != nil {
		return Firmware{}, err
	}
	cfg := acpi.Config{
		APICIDs:    acpi.SequentialAPICIDs(m.cfg.VPs),
		UARTs:      []acpi.UART{{Port: com1Port, IRQ: com1IRQ}},
		RTC:        true,
		PMBase:     pmPort,
		SCI:        sciIRQ,
		ResetPort:  pmPort + chipset.PMReset,
		ResetValue: chipset.PMResetValue,
		S5:         chipset.PMSleepOff,
	}
	if m.cfg.Window > 0 {
		cfg.UARTs = append(cfg.UARTs, acpi.UART{Port: com2Port, IRQ: com2IRQ})
	}
	if m.cfg.ExitPort != 0 {
		cfg.Reserved = append(cfg.Reserved, acpi.Ports{Base: m.cfg.ExitPort, Count: 4})
	}
	if !m.cfg.NoVMBus {
		cfg.VMBus = true
		cfg.MMIOLow = acpi.Range{Base: vmbusMMIOBase, Size: vmbusMMIOSize}
		if bits := m.cfg.HyperV.PhysicalBits; uint64(highMMIO)+vmbusHighSize <= 1<<bits {
			cfg.MMIOHigh = acpi.Range{Base: highMMIO, Size: vmbusHighSize}
		}
	}
	rsdp, _, err := acpi.Write(m.mem, cfg, acpi.Range{Base: boot.ACPIBase, Size: boot.ACPISize})
	if err != nil {
		return Firmware{}, err
	}
	if err := smbios.Write(m.mem, smbios.Config{VPs: m.cfg.VPs, Memory: m.cfg.Memory, Version: m.cfg.Version}); err != nil {
		return Firmware{}, err
	}
	return Firmware{Map: entries, RSDP: rsdp}, nil
}
