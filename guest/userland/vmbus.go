package userland

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/hvpost/hvpost/guest/agent"
)

// lsvmbus lists the VMBus devices with their drivers.
func lsvmbus(c *ctx) int {
	if !c.getopt("v", "verbose=v") {
		return 1
	}
	ds, err := agent.VMBusDevices()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return c.fail(1, "no VMBus here: the hv_vmbus driver is not loaded, or this is no Hyper-V machine")
		}
		return c.fail(1, "%s", reason(err))
	}
	for _, d := range ds {
		driver := d.Driver
		if driver == "" {
			driver = "-"
		}
		fmt.Fprintf(c.out, "%s class %s driver %s", d.Instance, d.Class, driver)
		if n, ok := classNames[d.Class]; ok {
			fmt.Fprintf(c.out, " (%s)", n)
		}
		c.out.WriteByte('\n')
		if !c.has('v') {
			continue
		}
		dir := "/sys/bus/vmbus/devices/" + d.Instance + "/"
		for _, f := range []string{"id", "state", "monitor_id", "channel_vp_mapping"} {
			if b, err := os.ReadFile(dir + f); err == nil {
				fmt.Fprintf(c.out, "\t%s: %s\n", f, strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", ", "))
			}
		}
	}
	return 0
}

// classNames are the classes of VMBus devices, include/linux/hyperv.h.
var classNames = map[string]string{
	"f8615163-df3e-46c5-913f-f2d2f965ed0e": "network",
	"ba6163d9-04a1-4d29-b605-72e2ffb1dc7f": "SCSI",
	"32412632-86cb-44a2-9b5c-50d1417354f5": "IDE",
	"2f9bcc4a-0069-4af3-b76b-6fd0be528cda": "fibre channel",
	"cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a": "mouse",
	"f912ad6d-2b17-48ea-bd65-f927a61c7684": "keyboard",
	"da0a7802-e377-4aac-8e77-0558eb1073f8": "video",
	"57164f39-9115-4e78-ab55-382f3bd5422d": "heartbeat",
	"9527e630-d0ae-497b-adce-e80ab0175caf": "time synchronization",
	"0e0b6031-5213-4934-818b-38d90ced39db": "shutdown",
	"a9a0f4e7-5a45-4d96-b827-8a841e8c03e6": "key-value pairs",
	"35fa2e29-ea23-4236-96ae-3a6ebacba440": "backup",
	"34d14be3-dee4-41c8-9ae7-6b174977c192": "file copy",
	"1850db74-54a5-4c6b-8d1f-6ba6e9ed1b8a": "dynamic memory",
	"525074dc-8985-46e2-8057-a307dc18a502": "dynamic memory",
	"44c4f61d-4444-4400-9d52-802e27ede19f": "PCI",
	"3375baf4-9e15-4b30-b765-67acb10d607b": "activation",
}
