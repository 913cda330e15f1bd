"""All checks."""

from collections.abc import Callable

from commands import devices, flags, listening, variables
from containers import confinement, images, limits, probes
from faults import Faults
from lifecycle import coordinators, disruptions, endings, jobs, queues
from manifests import Deployment
from network import addresses, network, transport
from references import accounts, namespaces, selectors, service_ports, settings, volumes
from schemas import custom_resources, dashboards

Check = Callable[[Deployment], Faults]

CHECKS: tuple[Check, ...] = (
    *(limits, probes, confinement, accounts, service_ports, selectors, settings, variables, flags, listening, devices, network),
    *(addresses, transport, volumes, endings, coordinators, disruptions, jobs, queues, images, dashboards, namespaces),
    custom_resources,
)
