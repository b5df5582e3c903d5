// Kubelet's own client of the image service, as a command: it calls what kubelet calls, with kubelet's deadlines (none
// for a pull), and prints what comes back as JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"
)

// The deadline that kubelet gives every call but a pull (runtimeRequestTimeout).
const timeout = 2 * time.Minute

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: kubelet SOCKET list|status|pull|remove|fsinfo [IMAGE [USER PASSWORD]]"))
	}
	service, err := remote.NewRemoteImageService("unix://"+os.Args[1], timeout, nil, nil)
	fail(err)
	image := &runtimeapi.ImageSpec{}
	if len(os.Args) > 3 {
		image.Image = os.Args[3]
	}
	var auth *runtimeapi.AuthConfig
	if len(os.Args) > 5 {
		auth = &runtimeapi.AuthConfig{Username: os.Args[4], Password: os.Args[5]}
	}
	ctx := context.Background()
	var answer any
	switch os.Args[2] {
	case "list":
		answer, err = service.ListImages(ctx, nil)
	case "status":
		answer, err = service.ImageStatus(ctx, image, true)
	case "pull":
		answer, err = service.PullImage(ctx, image, auth, &runtimeapi.PodSandboxConfig{})
	case "remove":
		err = service.RemoveImage(ctx, image)
	case "fsinfo":
		answer, err = service.ImageFsInfo(ctx)
	default:
		err = fmt.Errorf("unknown method %q", os.Args[2])
	}
	fail(err)
	fail(json.NewEncoder(os.Stdout).Encode(answer))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
