"""Client of the Kubernetes API: verbs, informers, work queues, events."""

from emulator.kubeclient.backoff import Backoff, BackoffPolicy
from emulator.kubeclient.config import KubeConfig
from emulator.kubeclient.controller import Controller
from emulator.kubeclient.errors import ApiError, ApiUnreachableError
from emulator.kubeclient.events import EventRecorder
from emulator.kubeclient.informer import Informer, SharedInformers
from emulator.kubeclient.resource import Resource
from emulator.kubeclient.rest import ObjectList, RawResponse, RestClient, WatchEvent
from emulator.kubeclient.store import Lister
from emulator.kubeclient.workqueue import QueueShutDownError, WorkQueue

__all__ = [
    "ApiError",
    "ApiUnreachableError",
    "Backoff",
    "BackoffPolicy",
    "Controller",
    "EventRecorder",
    "Informer",
    "KubeConfig",
    "Lister",
    "ObjectList",
    "QueueShutDownError",
    "RawResponse",
    "Resource",
    "RestClient",
    "SharedInformers",
    "WatchEvent",
    "WorkQueue",
]
