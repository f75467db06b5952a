package session

import (
	"context"
	"strings"

	"github.com/hvpost/hvpost/vmbus"
)

// A timed device tells when the guest opens it.
type timed struct {
	vmbus.Device
	opened func()
}

// Serve implements vmbus.Device.
func (d *timed) Serve(ctx context.Context, ch *vmbus.Channel) error {
	d.opened()
	return d.Device.Serve(ctx, ch)
}

// snapshotBus records the bus as it is now. It is called when the command has
// ended and again when the machine has; the first counts.
func (r *run) snapshotBus() {
	bus := r.machine.Bus()
	if bus == nil {
		return
	}
	st := bus.Status()
	v := &VMBus{Version: st.Version.String()}
	for _, c := range st.Channels {
		v.Devices = append(v.Devices, VMBusDevice{
			Name: c.Name, Type: c.Type.String(), Instance: c.Instance.String(), State: string(c.State),
		})
	}
	r.mu.Lock()
	if r.bus == nil {
		r.bus = v
	}
	r.mu.Unlock()
}

// drivers adds what the agent saw in the guest.
func (r *run) drivers(v *VMBus) {
	if v == nil {
		return
	}
	for i := range v.Devices {
		for _, d := range r.info.Devices {
			if strings.EqualFold(d.Instance, v.Devices[i].Instance) {
				v.Devices[i].Driver = d.Driver
			}
		}
	}
}
