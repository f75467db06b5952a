package chipset

import "sync"

// ACPI fixed hardware registers, by offset from the base of the block (ACPI
// 4.8.3). The FADT of package acpi must describe the same layout.
const (
	PMStatus  = 0 // PM1a_STS, 2 bytes
	PMEnable  = 2 // PM1a_EN, 2 bytes
	PMControl = 4 // PM1a_CNT, 2 bytes
	PMReset   = 8 // RESET_REG, 1 byte
	PMSize    = 16

	// PMResetValue is what the guest writes to PMReset.
	PMResetValue = 1
	// PMSleepOff is the SLP_TYP of S5.
	PMSleepOff = 5

	pmSCIEnable   = 1 << 0
	pmSleepEnable = 1 << 13
	pmSleepShift  = 10
	pmPowerButton = 1 << 8
	pmStatusMask  = 0x8731 // the status bits the specification defines
)

// PM is the ACPI fixed hardware: power-off by S5, reset, the power button.
// There is no PM timer: a guest of this machine has better clocks.
type PM struct {
	irq IRQ
	off func()
	rst func()

	mu      sync.Mutex
	status  uint16
	enable  uint16
	control uint16
	level   bool
}

// NewPM returns the fixed hardware. off is called when the guest enters S5,
// reset when it writes the reset register; irq is the SCI.
func NewPM(irq IRQ, off, reset func()) *PM {
	return &PM{irq: irq, off: off, rst: reset}
}

// PressPowerButton raises the power button event.
func (d *PM) PressPowerButton() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status |= pmPowerButton
	d.update()
}

func (d *PM) update() {
	if level := d.status&d.enable != 0; level != d.level {
		d.level = level
		d.irq(level)
	}
}

// reg returns the 16-bit register that byte off belongs to.
func (d *PM) reg(off uint16) uint16 {
	switch off &^ 1 {
	case PMStatus:
		return d.status
	case PMEnable:
		return d.enable
	case PMControl:
		return d.control | pmSCIEnable // there is no legacy mode to leave
	}
	return 0
}

// PortIn reads len(p) bytes at off.
func (d *PM) PortIn(off uint16, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range p {
		o := off + uint16(i)
		p[i] = uint8(d.reg(o) >> (o & 1 * 8))
	}
}

// PortOut writes len(p) bytes at off.
func (d *PM) PortOut(off uint16, p []byte) {
	d.mu.Lock()
	var event func()
	for i, b := range p {
		o := off + uint16(i)
		shift := o & 1 * 8
		v, mask := uint16(b)<<shift, uint16(0xFF)<<shift
		switch o &^ 1 {
		case PMStatus:
			d.status &^= v & pmStatusMask
		case PMEnable:
			d.enable = d.enable&^mask | v
		case PMControl:
			d.control = (d.control&^mask | v) &^ pmSleepEnable
			if o == PMControl+1 && v&pmSleepEnable != 0 && d.control>>pmSleepShift&7 == PMSleepOff {
				event = d.off
			}
		case PMReset:
			if o == PMReset && b == PMResetValue {
				event = d.rst
			}
		}
	}
	d.update()
	d.mu.Unlock()
	if event != nil {
		event()
	}
}
